"""How each method's golden arrays are computed: a module per method, with `compute`."""
