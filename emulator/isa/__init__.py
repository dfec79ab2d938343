"""Knowledge about instruction sets, as data: one package for each."""
