"""Exporting a model as a graph: ONNX, TorchScript, torch.export."""
