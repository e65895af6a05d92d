"""A judge: another model, on this machine or at an endpoint, that decides for each criterion whether a completion meets it.

`judging.judge_all` asks and adds up, `endpoint.Endpoint` or `asking.in_batches` brings the prompts to a model, and
`cache.AnswerCache` keeps the answers. Nothing here imports jax, and openai is imported only when an `Endpoint` is made.
"""
