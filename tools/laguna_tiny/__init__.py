"""How laguna-tiny is made: corpus, tokenizer, training, export, evaluation."""
