"""The loss of any module on data: batches in chunks, gradients, products with the Hessian."""
