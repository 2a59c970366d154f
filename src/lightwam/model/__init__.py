"""The model: flow, layers and LoRA below, the video transformer and the action expert above them, LightWAM on top."""
