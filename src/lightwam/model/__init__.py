"""The model: LightWAM, made of the video transformer (dit) and the action expert; flow, layers, lora serve both."""
