"""RocLM behind the APIs that other programs speak: OpenAI's and Anthropic's, over `roclab.lm.engine`.

app, security     the FastAPI application; who may ask it, and how much
settings, models  what an operator sets; models by name, loaded on demand within a bound of memory
worker            an engine in a thread of its own, and the coroutines that wait for it
generation        one request: its prompts, sampling and limits in, pieces of text out
chat, completions, messages, responses, tokens    the endpoints
tools, grammar    tool calls, and answers held to a JSON schema or a grammar
"""
