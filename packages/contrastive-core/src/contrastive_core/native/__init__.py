"""Build and load the compiled similarity primitive, whose C++ sources are in `csrc/`.

Nothing is compiled unless the user requests it, by installing the package where torch and a compiler are available
(`pip install --no-build-isolation`) or by running `python -m contrastive_core build`.
"""
