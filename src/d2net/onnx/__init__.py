"""The model for other programs: one ONNX graph, and the few lines of numpy that go with it."""
