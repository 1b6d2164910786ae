"""``laguna-ref serve``: an OpenAI-compatible endpoint over the oracle (needs the serve extra).

From a request to its answer: ``app`` reads and checks it (``requests``), ``completions`` or
``chat`` turns it into jobs (``job``), ``engine`` runs all of them in one batched loop
(``sequence``, ``prefix_cache``), and what comes out of it is put into OpenAI's words again.
"""
