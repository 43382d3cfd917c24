"""What a computation calls below autograd, written down once and called again without the rest."""
