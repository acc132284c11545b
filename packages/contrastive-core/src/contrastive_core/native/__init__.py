"""The compiled similarity primitive: its C++ in `csrc/`, how it is built, found and loaded.

Nothing is compiled unless asked: by installing with torch and a compiler at hand (`pip install --no-build-isolation`),
or by `python -m contrastive_core build`.
"""
