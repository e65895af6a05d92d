"""A judge that decides criterion by criterion whether a completion meets a rubric: another model, here or at an endpoint.

`judging.judge_all` asks and adds up, `endpoint.Endpoint` or `asking.in_batches` brings the prompts to a model, and
`cache.AnswerCache` keeps what was answered. Nothing here imports jax, and only an `Endpoint` that is made imports openai.
"""
