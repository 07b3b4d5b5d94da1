"""Small molecules as SMILES, written down for this package from common knowledge: the embedded data set `small`.

Elements H C N O F P S Cl Br I; rings of three to seven atoms, chains, charges, double bonds with a named side, and many
molecules with several centres of named handedness; at most 33 atoms. A group is one text, its molecules apart by white
space.
"""

from __future__ import annotations

__all__ = ["SMILES"]

_SOLVENTS = """
O CO CCO CC(C)O CCCCO OCCO OCC(O)CO CC(C)=O CCC(C)=O CCOCC C1CCOC1 C1COCCO1 COCCOC CC#N CN(C)C=O CC(=O)N(C)C CS(C)=O
CN1CCCC1=O ClCCl ClC(Cl)Cl ClCCCl CCCCC CCCCCC C1CCCC1 C1CCCCC1 CC1CCCCC1 Cc1ccccc1 Cc1ccc(C)cc1 CCOC(C)=O CC(=O)O
OC=O CC(=O)OC(C)=O C1CCC(=O)CC1 O=C1CCCO1 O=C1OCCO1 COC(=O)OC CC(C)(C)OC OCC(F)(F)F C[N+](=O)[O-] S=C=S
"""

_GROUPS = """
C CC CCC CC(C)C CC(C)(C)C C=C C#C CC=C C=CC=C CC#C C=C=C C1CC1 C1CCC1 N CN CNC CN(C)C CCN NCCN NCCO NN NO CON C=O CC=O
C=CC=O OC(=O)C(O)=O NC(N)=O NC(N)=S NC=O CC(N)=O CNC(C)=O CC(=O)SC CS CSC CSSC CCS CS(C)(=O)=O CS(N)(=O)=O CS(O)(=O)=O
COS(C)(=O)=O CN=C=O CN=C=S CC#C[N+](C)(C)C CC(C)=NO CC=NN CN=NC C[N+](C)(C)C C[NH3+] CC(=O)[O-] C[S+](C)C C[P+](C)(C)C
CP(C)C CP(C)(C)=O COP(=O)(OC)OC CP(O)(O)=O CCl CBr CI CF FC(F)F FC(F)(F)F FC(F)(F)C(F)(F)F CC(Cl)Cl C=CCl C=CBr
CC(=O)Cl N#CC#N C=CC#N O=C=O COC=O CC(=O)OC=C COC(OC)OC C1CO1 C1CN1 C1CS1 C1COC1 C1CNC1 O=C1CCN1 C=C1CC1 C1=CC1 OO
COOC CC(=O)OO NC(=N)N NC(N)=[NH2+] CC(=N)N CNO
"""

_RINGS = """
c1ccccc1 Oc1ccccc1 Nc1ccccc1 COc1ccccc1 Fc1ccccc1 Clc1ccccc1 Brc1ccccc1 Ic1ccccc1 O=Cc1ccccc1 OC(=O)c1ccccc1
N#Cc1ccccc1 [O-][N+](=O)c1ccccc1 C=Cc1ccccc1 Sc1ccccc1 CC(=O)c1ccccc1 Oc1ccccc1O Oc1ccc(O)cc1 Nc1ccc(N)cc1
Clc1ccc(Cl)cc1 Cc1ccccc1C c1ccncc1 c1cnccn1 c1ccnnc1 c1cncnc1 c1ncncn1 c1cc[nH]c1 c1ccoc1 c1ccsc1 c1c[nH]cn1
c1cn[nH]c1 c1cocn1 c1cscn1 c1conc1 c1nn[nH]n1 c1nc[nH]n1 c1nncs1 c1ccc2ccccc2c1 c1ccc2[nH]ccc2c1 c1ccc2occc2c1
c1ccc2sccc2c1 c1ccc2[nH]cnc2c1 c1ccc2ncccc2c1 c1ccc2nsnc2c1 c1ncc2[nH]cnc2n1 O=c1cc[nH]c(=O)[nH]1 Nc1cc[nH]c(=O)n1
Cc1c[nH]c(=O)[nH]c1=O Nc1ncnc2[nH]cnc12 Nc1nc2[nH]cnc2c(=O)[nH]1 C1CCNCC1 C1COCCN1 C1CNCCN1 C1CCSCC1 C1CCNC1 C1CCSC1
CN1CCCC1 O=C1CCCN1 O=C1CCC(=O)N1 O=C1C=CC(=O)O1 O=C1C=CC(=O)N1 O=C1C=CC(=O)C=C1 C1CC2CCC1C2 C1CC2CCC1CC2 C1CN2CCC1CC2
C1CN2CCN1CC2 C1C2CC3CC1CC(C2)C3 C1=CCCCC1 C1=CCC=CC1 C1=CC=CCC=C1 C1CCCCCC1 C[n+]1ccccc1 c1cc[nH+]cc1 C[n+]1ccn(C)c1
[O-][n+]1ccccc1 Cc1nccn1C c1ccc(-c2ccccc2)cc1
"""

_AMINO_ACIDS = """
NCC(=O)O C[C@H](N)C(=O)O C[C@@H](N)C(=O)O CC(C)[C@H](N)C(=O)O CC(C)C[C@H](N)C(=O)O CC[C@H](C)[C@H](N)C(=O)O
C[C@@H](O)[C@H](N)C(=O)O C[C@H](O)[C@H](N)C(=O)O OC[C@H](N)C(=O)O N[C@@H](CS)C(=O)O CSCC[C@H](N)C(=O)O
O=C(O)[C@@H]1CCCN1 O=C(O)[C@@H]1C[C@@H](O)CN1 O=C(O)[C@@H]1C[C@H](O)CN1 NC(=O)C[C@H](N)C(=O)O NC(=O)CC[C@H](N)C(=O)O
N[C@@H](CC(=O)O)C(=O)O N[C@@H](CCC(=O)O)C(=O)O NCCCC[C@H](N)C(=O)O N[C@@H](Cc1ccccc1)C(=O)O N[C@@H](Cc1c[nH]cn1)C(=O)O
N[C@@H](Cc1ccc(O)cc1)C(=O)O C[C@H]([NH3+])C(=O)[O-] [NH3+]CC(=O)[O-] C[C@H](NC(C)=O)C(=O)NC C[C@H](N)C(=O)NCC(=O)O
C[C@@H]1NC(=O)[C@H](C)NC1=O O=C1CNC(=O)CN1 C[C@@H]1NC(=O)[C@@H](C)NC1=O C[N+](C)(C)CC(=O)[O-] NCCC(=O)O NCCCC(=O)O
N[C@H]1CONC1=O
"""

_SUGARS = """
OC[C@@H](O)C=O OC[C@H](O)[C@@H](O)C=O OC[C@@H](O)[C@@H](O)C=O OC[C@H]1OC(O)[C@H](O)[C@@H]1O
OC[C@H]1O[C@@H](O)[C@H](O)[C@@H]1O OC[C@H]1O[C@@H](O)C[C@@H]1O OC[C@H]1O[C@@H](O)[C@H](O)[C@@H](O)[C@@H]1O
OC[C@H]1O[C@H](O)[C@H](O)[C@@H](O)[C@@H]1O OC[C@H]1O[C@@H](O)[C@H](O)[C@@H](O)[C@H]1O
OC[C@H]1O[C@H](O)[C@@H](O)[C@@H](O)[C@@H]1O C[C@@H]1O[C@@H](O)[C@H](O)[C@H](O)[C@@H]1O
O[C@@H]1CO[C@@H](O)[C@H](O)[C@H]1O OC[C@@H](O)[C@H](O)CO OC[C@H](O)[C@H](O)CO C[C@H]1O[C@H](O)C[C@H](O)[C@@H]1O
OC1C(O)C(O)C(O)C(O)C1O OC(=O)[C@H](O)[C@@H](O)C(=O)O OC(=O)[C@@H](O)[C@@H](O)C(=O)O OC[C@H](O)[C@H]1OC(=O)C(O)=C1O
"""

_STEREO = """
C[C@H](O)CC C[C@@H](O)CC C[C@H](F)Cl F[C@](Cl)(Br)I C[C@H](O)[C@@H](C)O C[C@H](O)[C@H](C)O C[C@H](Cl)[C@@H](C)Br
C[C@H](F)[C@H](F)C C[C@H](O)C(=O)O C[C@@H](O)C(=O)O C[C@H]1CO1 C[C@@H]1O[C@@H]1C C[C@@H]1O[C@H]1C C[C@H]1C[C@@H]1C
C[C@H]1C[C@H]1C O[C@H]1CCC[C@@H]1O O[C@H]1CCC[C@H]1O C[C@H]1CCC[C@@H](C)C1 C[C@H]1CCC[C@H](C)C1 C[C@H]1CC[C@@H](C)CC1
C[C@H]1CC[C@H](C)CC1 O[C@H]1CC[C@@H](O)CC1 N[C@H]1CCCC[C@@H]1N N[C@H]1CCCC[C@H]1N F[C@H]1CCCC[C@@H]1F
C[C@@H]1CCC[C@H]1O C[S@](=O)CC C[S@@](=O)CC C[S@@+]([O-])c1ccccc1 C[P@](=O)(O)CC C[C@H](N)CO C[C@H](N)c1ccccc1
O[C@H](C#N)c1ccccc1 CC(C)[C@@H]1CC[C@@H](C)C[C@H]1O C/C=C/C C/C=C\\C F/C=C/F F/C=C\\F Cl/C=C/Cl Cl/C=C\\Cl C/C=C/C=O
C/C=C\\C=O OC(=O)/C=C/C(=O)O OC(=O)/C=C\\C(=O)O C/C=N/O C/C=N\\O C/N=N/C C/N=N\\C C/C(F)=C/C C/C(Br)=C(/C)Cl
C/C=C/C=C/C C/C=C\\C=C/C O=C/C=C/c1ccccc1 OC(=O)/C=C/c1ccccc1 C(=C/c1ccccc1)\\c1ccccc1 C[C@H](O)/C=C/C
C[C@@H](F)/C=C\\[C@H](C)O C/C=C/[C@H](N)C(=O)O C[C@H](O)/C(C)=N/O C[C@@H]1CC=C[C@H](O)C1 CC1=CC[C@@H](C(C)=C)CC1
CC1(C)[C@@H]2CC[C@@]1(C)C(=O)C2 CC1=CC[C@H]2C[C@@H]1C2(C)C CC(=C)[C@H]1CC=C(C)C(=O)C1 O=C1C[C@H]2CC[C@@H]1C2
O[C@@H]1C[C@@H]2CC[C@H]1C2 C1C[C@H]2CC[C@@H]1O2 C1CC[C@H]2CCCC[C@@H]2C1 C1CC[C@H]2CCCC[C@H]2C1 C1CO[C@H]2OCC[C@@H]2C1
O=C1CO[C@H]2CCC[C@@H]2N1 C[C@H]1OC(=O)C[C@@H]1C C[C@@H]1CN[C@H](C)CN1 O[C@H]1COC[C@@H]1F OC[C@@H]1CC[C@H](n2cnnc2)O1
C[C@]1(O)CC[C@@H](Cl)C1
"""

_DRUGS = """
CC(=O)Oc1ccccc1C(=O)O CC(=O)Nc1ccc(O)cc1 CN1C=NC2=C1C(=O)N(C)C(=O)N2C CN1CCC[C@H]1c1cccnc1 C[C@@H](N)Cc1ccccc1
CN[C@@H](C)[C@H](O)c1ccccc1 CN[C@@H](C)[C@@H](O)c1ccccc1 CNC[C@H](O)c1ccc(O)c(O)c1 NCCc1ccc(O)c(O)c1
NCCc1c[nH]c2ccc(O)cc12 CC(C)Cc1ccc([C@H](C)C(=O)O)cc1 NC(=O)c1cccnc1 OC(=O)c1cccnc1 NNC(=O)c1ccncc1
Nc1ccc(S(N)(=O)=O)cc1 NC(=O)c1ccccc1O OC(=O)c1ccccc1O CCOC(=O)c1ccc(N)cc1 CN(C)C(=N)NC(N)=N NCC1(CC(=O)O)CCCCC1
CC[C@H](C)C(=O)N CCC1(CC)C(=O)NC(=O)NC1=O O=c1[nH]cc(F)c(=O)[nH]1 Cc1ncc([N+](=O)[O-])n1CCO O=C1Cc2ccccc2N1
COc1cc(C=O)ccc1O O=c1ccc2ccccc2o1 CN(C)CCc1c[nH]c2ccccc12 C[N+](C)(C)CCOC(C)=O NCC[C@@H](O)C(=O)O
Clc1ccc(OCC(=O)O)c(Cl)c1 O=P(O)(O)OC[C@@H](O)CO O=P(O)(O)CNCC(=O)O
"""

SMILES: tuple[str, ...] = tuple(
    dict.fromkeys(" ".join((_SOLVENTS, _GROUPS, _RINGS, _AMINO_ACIDS, _SUGARS, _STEREO, _DRUGS)).split())
)
"""All of them, each once."""
