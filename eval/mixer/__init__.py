"""How good mixers are, beside their alternatives, from data to table by one resumable command."""
