"""The command line ``momentumnet``: parsers and printing, in front of the public functions and of ``finetuning``."""
