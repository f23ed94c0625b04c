"""What operators use: the command line, the benchmark, the doctor."""
