"""CPU engines: a processor that runs until something happens."""
