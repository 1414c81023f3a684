"""Pixel contrast: cells and their prototypes, queries, InfoNCE, NROIs and FBR's terms.

Every *choice* (pseudo labels, prototypes, queries, negatives) is made on the global batch and
carries no gradient. The gradient flows through this rank's query embeddings only.

Letters in the shapes of this folder: N images of this rank, G images of all ranks, K classes, D
width, g cells per side, T = G g g cells, P classes for which the terms are computed, M queries per
class, n negatives per class, Q rows of the bank. `label` is image-level and in {0, 1}.

No function copies a value from an accelerator to the host, which would stall its stream. On the
CPU, where reading is free, `class_ids_of`, `draw_queries` and `Queries.blocks` skip work that an
accelerator does and masks out.
"""
