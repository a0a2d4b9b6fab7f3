# A cluster's troubles that Snakemake's Slurm plugin does not survive by itself, on the driver's side.
from distillery.cluster import snakemake_slurm

snakemake_slurm.install()
