"""What `convert_pretrained.py` is made of: the network, the images, the table of accuracies, the fine-tuning."""
