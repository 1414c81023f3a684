"""Pixel contrast: cells and their prototypes, queries, InfoNCE, NROIs and FBR's terms.

Everything that *chooses* (pseudo labels, prototypes, which cells, which negatives) sees the global
batch and carries no gradient. The gradient flows through this rank's query embeddings only.

Letters in the shapes of this folder: N images of this rank, G images of all ranks, K classes, D
width, g cells per side, T = G g g cells, P classes that are computed for, M queries per class, n
negatives per class, Q rows of the bank.

No function reads a number back from an accelerator. On the CPU, where reading is free,
`class_ids_of`, `draw_queries` and `Queries.blocks` skip work that an accelerator does and masks
out.
"""
