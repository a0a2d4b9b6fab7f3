"""What may be written in the YAML files: experiments, recipes, data sets and objectives.

Every class is one mapping of a file and every field one key; `config/README.md` describes them for the reader, and
`workflow/schemas/*.json` (written by `make`, or by hand with `distillery schema`) serves editors. Nothing here imports
torch, because Snakemake reads the configuration in every job.
"""
