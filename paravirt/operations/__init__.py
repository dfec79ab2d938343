"""What each sensitive operation does to a virtual CPU, an instruction set a file."""
