"""What steps call their files: for readers that don't need what wrote them."""

FILE = "sensitivities.safetensors"  # the scores, or sums of them
LAYERS = "layers.json"  # each layer's total sensitivity
