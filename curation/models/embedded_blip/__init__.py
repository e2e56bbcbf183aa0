"""The embedded captioner and matcher: trained weights and the assembly of their folders."""
