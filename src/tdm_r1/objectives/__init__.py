"""The three losses of TDM-R1: distillation (stage 0 and the fake score), surrogate, generator."""
