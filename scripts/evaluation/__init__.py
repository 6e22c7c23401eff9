"""Parts of the evaluation commands that need both a policy and eval/.

`entrants` turns --policy into contestants, `success_table` prints a receipt, `client_stages`
compares a client's requests with training.
"""
