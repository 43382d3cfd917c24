"""Fast tensor functions without state, each tested against a plain reference."""
