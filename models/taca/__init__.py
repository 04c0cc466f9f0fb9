"""TaCA-style adapters: a frozen new encoder learns to answer in the old model's space, by small layers inside it.

After "TaCA: Upgrading Your Visual Foundation Model with Task-agnostic Compatible Adapter" (Zhang et al., arXiv
2306.12642). **Its authors published no code**, and its formulas could not be read: this is a reconstruction from the
abstract and from reviews, and nothing here was or can be compared with the original. docs/ADAPTED-ENCODERS.md says
which parts are known and which are ours.

- bottleneck.py: the small layers, where they stand in a transformer's layer, and how many parameters they have
- space.py: the map from the new model's dimensions to the old one's
- network.py: a frozen vision transformer with both
- losses.py: distillation, and the contrast of new pictures with old texts
- hooks.py: the small layers on encoders of other libraries
- training.py: the training, and the artifact it leaves: an encoder that emits the old space
"""
