"""Technique 1, information-driven token elimination: which tokens are worth computing.

blocks            tokens -> blocks of b consecutive tokens of one document
informativeness   how much the other tokens ask of each block (paper, equations 1 and 2)
targets           which blocks are learnt from, decided before any score
selection         scores -> the blocks that stay involved, and their token indices
"""
