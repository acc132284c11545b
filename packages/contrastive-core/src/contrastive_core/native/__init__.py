"""Compiled similarity primitive: its C++ sources in `csrc/`, building and loading.

Nothing is compiled unless requested, by installing with torch and a compiler at hand
(`pip install --no-build-isolation`) or by `python -m contrastive_core build`.
"""
