"""The page of a report: one HTML file that asks nothing of any network.

`page`: the file from an account. `advice`: what would change a refusal. `write`: to disk.
`assets`: the styles and scripts, ours and the libraries that draw.
"""
