"""How transformers train on text by their initialisation, with warmup and without; and what initialisations cost."""
