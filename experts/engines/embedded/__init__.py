"""The embedded engine: a child process that serves one base under many adapters on transformers.

Start it with `python -m experts.engines.embedded --model DIR --port P --serve NAME[=ADAPTER_DIR]`.
"""
