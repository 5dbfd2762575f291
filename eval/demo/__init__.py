"""The shipped demonstration: checkers that grade experts on the demo prompts."""
