"""The network itself, in PyTorch."""
