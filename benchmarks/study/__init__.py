"""The study: does PoGDiff help the tail, against every baseline, on real faces with held-out photographs?"""
