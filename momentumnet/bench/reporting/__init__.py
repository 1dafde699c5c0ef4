"""What benchmarks leave behind: results with where they are from, tables and figures of them."""
