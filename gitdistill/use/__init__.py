"""Using what was trained: captioners, the command line's tools, ONNX."""
