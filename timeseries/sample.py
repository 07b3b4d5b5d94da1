"""Fill the gaps of a table and forecast: `polydiff sample timeseries`, `python -m polydiff.timeseries.sample`.

What is written has the rows and columns that came, in their order and with their types; observed cells are those of the
input bit for bit. Files appear whole or not at all, and only when everything has been drawn.
"""
