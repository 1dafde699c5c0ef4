"""The toy experiments of *Momentum Residual Neural Networks* (ICML 2021), and its theory of linear maps."""
