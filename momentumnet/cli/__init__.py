"""The command line ``momentumnet``: a front end of the public functions, and the only place with a training loop."""
