"""The bridge: a process that speaks the OpenAI API and asks other providers through LiteLLM.

It runs in an environment of its own, because LiteLLM's pins exclude ours; so it imports nothing of
Composer but itself.
"""
