"""Energy of LLM inference, measured in pytest."""
