"""Every torchvision model, converted: streams, blocks, bytes saved, gradient error."""
