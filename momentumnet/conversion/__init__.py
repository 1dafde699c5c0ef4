"""From a model to a converted one, and back: what is planned, how it is applied."""
