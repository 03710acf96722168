"""A Theora stream, since PyAV has no encoder of it: SHOWN, the numbers that `numbered.picture` wrote, at 25 a second.

A picture shown once more is an empty packet. Made with `ffmpeg -f rawvideo -pix_fmt rgb24 -s 64x48 -r 25 -i - -c:v
libtheora -b:v 20k -g 8 -pix_fmt yuv420p -fflags +bitexact -flags +bitexact -f ogg -` (ffmpeg 5.1)."""

import base64
import zlib

SHOWN = [0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 4, 5, 5, 6, 7, 7, 7, 7, 7, 7, 7, 8, 9, 9]
PACKED = """
c-p0xc|4T+_rPZm#*%$0p}|d-
XtJc_GGYdynXzQbHW*79#*!#8CR<36;Y#IeNfEA*eI0~G)(A<N$yO<ZD3RYYcii7~f4|r3d;hrSHRtnw&gXp2dCqyBXZ|>+y}WEd9H9RrKL$7Bz^bHRZ@h
mXj*|ln;sSAkKt>?Y;XmAa00sZ~v)&J)on~eEn*a`w-
_~09Zq2P7ax03Rk{j@PdJ>3uFV;CpK=FR={vP;114~?p`~C|)ZtQbpHkx`4uGRMVN>>(|TL=f;oq;7`((<9aup~F(Xeh7I|K3!DP-
^3q`fS5qbR+cGxeGI@U%emO9u!kiIxGA$>{!+fPa8;Rxt+@G>q_K3yx}KglezQYqy~FcaR`?i6xi4&5X;eG6t5>CIX0~urhc;>r`dUpQq}AByM02XanzAi
(;T7M+nF`P_`?~AzhE-;Qq7>Z;@Vn98Rxa7`P<!cjBX(mgn<p(GgozS-fK}tWsCn-XtXa-
I2_gA&lG{8(MAjgV4~3|CRhXp5DgY#t!Ok9#wL6HOF%R#7@k6<0r60DOG_DJ05DrxXiP8+M;#bw5rF{~lQ{s7qP7eG1XcjR#lRmN0F~u{$=9^{X*4D*FRz
UV#FMY3*^rnbxIvwZoJ^>jO+I2ccz~=Gyh}1pqD`D@I^<GDtZhvDsxmhs1om$Q3Pq>n00M>MSja)+{xEac>pzPK6t`q-
Yz&9O$qFpu$fCw9F0rhC7PttMysE3K3xlHb53m@O7Yji5$O_B)XMv&rr9goP5D=9@-A2nc2DUM<je%`2x53;7Q$$1r9+1-
tW`hIDh60)m44MrLnhi_}8>zY5$N_`F@TgXfC^oKbgKHaHU^ckGY;be1!MhD!P`I;W@KxvWPllSMWqUo9!((JxUW#1_>^7}SK1z$27By*Xp{B0C#AtVywv
R?bp0#|Iwan<nRX!F>D#A4UxFkf^kN3%RN~CgWrXXV<qb_(fL<G*eok3QFDMQxm%-
{(#g#b!B$XaPHu8p0TtA*0KhTZ+|8YV0@h%Q%eD9aYe4a{OpIygQKd)lCUoAw-nB3Gj>i+`bZ*DD&$qpl$D1!fU0m7Uq8n#9|rw3TRD94J&{qMzk55A~4|
Xs7(=sI|ouYR&(6>Q`F|@3NjXrFc~1Xo84SRDKlwU0nUei7k(grBM~0C$x$={bY4}cOg<&GUA5G3wq_&(1Y4n`y9gMmAPKfD?$%3v_8I<wC6hOPN%S3kP^
9uPuxSMTb!fcuR?00Kdqm0Eg>FAw+e0t&sZ<mnUR!6=EfVX4`iGd?0te09XiUdCTQ3$hm0T=rKar~xaaXS&n1SENT)v-L*A<i5{?U)zaamCV0w_Zl-
NFpHKp8Ca(R6TsylS`x1_cl!*!3Uy$LAAXe_pF`Lp><#8|XRZQ1*?9&6V8zkN&TyC{KCFLpV2b%8W?eQTs36rpen-zGjjrlCI=>dHTdeMI^wClg+mW36`X
eqc!a3dQ6F@_PY7Y(}cLloq%AFo2LS+s}92$D24UZKXD*wCtF4w0m!D?CNdGXa_^_^%_qAhgZcZ<$JadwUql0;cA5Rb@>jgVikM^KhLVQd%8{!UG}Kix|v
XTwiUF#dRS~~+;>dlZmW7p5SXdvcD*sxfFIk;v{T4<>aV|XuftniV*Cy1yd?oyP8YLI#2$<8SdXzysy*H-
w&Ay1B)VO&a@9$n>Xa{&(JLAzDbK5lK`ii}Tva(y;(onTBllzwv3oD-wTowl+E4MCyKX(XN*>WKK9_VJz4wE${*pqDCvF8~plnt1^}Qhv#;m+&n0JrTey!
N}y3fhMJ}mlkH<f`=KnWIPV6|f+kvz4b6>Uw(VKtbS{1jx~ABA<YxCEJ3<m#!+Fh3I064|snW)E|0BH7aIC)iF|!SXlvDeie8w~C8PQbF-
u;HoD+8kb5p@oq(C_Kn$rJVJSL8k=}8)1{CpT)Z}+_*GZl!5G_Wa28^0I;r|9gflMYlepElgmxeO<7Zcc!{b#kjLR^Y^YnsXTx5t$j(w%UQ|~&tQ~R^FYI
%fo-Wbd%D_K2?<-VAxVwVzh@*z&U{EGbS=vjH;?`<;O)rR`W-
?b9e9KAmXAIR`A$m6(^#Hcvi#5pTpeOFLiRJ1C~CA^h^lnS55;w>DWT;vUZ&SxiI7Yh!OlNrYPgo+jritiw^m6Hbya*697?e>)mvbOGb{9FvVj);)OwZ7(
K__+(b<LUcugQ^smd@{!EZl2|<o_V~fy#4JyX-0xU$JAEo^e)r=9=b2JET?mlW$O~kpBl<38l<jC-
smrpdbCHo`?aHkm7%x9s0}J{vhbLE>W^T5JqgV5=I9yerC%$cdCmO-1KeZzRvIbOAMp6Mek$Y3G0k8})EjWu;w>vRLU8X1`FeLa-eckNBg{89Gu@YJ=1;o
f&(&OfAA#GewsFQaoAS6Gj(YpxFpqC8qx#|7_)~O&o=S@s7k*=I#i<M-%BhVOs6~+#CFhnzXjS1IFU_B{W7c)#iN~Q-
DfccrJta*G8lf<)N2_CMH69%V`nq&;*dDP^(n(Q~+*Hgq6D}@JlDd7wCySF1Q2#Sm_Ted{Onk5Lhs5qZZa!HA@9I|)MwsLC?LOvP-
(sFxZHV8*Y3DtHj1nU=+O8yFm$9xUW)@=v_l4)fL#p{T&zm_8vl_dtZR@faF*hOrgVz!go`v1DGeekJ_-GM=a@W*}&}BwQm*!`=uO08M6rTa{!J1b#Xaza
v7r^_wUwDo^PZv>~Z>`Y0toI|Jw*M&|RzRqvARwB^t~>EUzZREeS653eMv5y2oX9?Q-A;-
3bYw+2bpl<($4S6y_eqLrrY~?$uFORNVTW_lkM<~e?>>!R7cDY5eW(OC;m9khmli`G*_^jC$9otDF{_HCook*;X8zE6?#|=<#p2;GnZ$Y%`MoE?piNUkZ_
4n(+0P~BRSG%dP&dVvN@*^#6NgZ)X21Brs%oc`tlrjd*q|0>?P&&zi4@9xKjV!?MQ%j`{(#T@GhzcYELI9t_((Clrr}6tLEw$bPRPEJT+W`iH)j_}H@c96
>qRNew}jI!iL@uQPCf3(tQu<dblCETH#n0=wk~zXP{?*|>SsL(MV?Z9NR{LJk$goK=&bsW3LHpDiP~TI3viK>1WT$<c9&!y^OKGQhLnVLn2ex1UQe?oJl=
|RsOYX6miqcZj1Cn(QE3Gi?2S}DtRx0}zSzLddcHM2MbpS$*~`0|t<3~0StU|ie-zn(zVx-mmyA<8i+U%cZO}pw8on7Ja-au+kHYc*{>GZ0{91bg{pUqt1
UUVW7VszGpU+s?3M{YG;SDFf5jB-;B+gMk(2WPbU;Cr@8L7Uv?^RVo-?i%arEbKCUkjx}<4MHh0z|Kr3v=_9-$sx>0`r<rsfDQ)A-
<%Z6ag`Ur5Sw+uSUi*zm(owokm8a+b`MK-k4O1RRGi8!&>f}KKZ>?Ytl*nb64`FddXB#p#+AQ{Rk|&XgR1wz;_|^PQL4EZ)jR^dL=7A&+i`lK-
01LKUhbetQfk0bW(v&W>xuwAy1^jd!gCcE<5#Nd9+js(}-
y1oCY*$p6MR*ChuH77TYy4_zl5SCT#9E4vt7WoSClHqeUngGAYQt{VZx_C1f(&xL%RucgS#$+u#vTsVv{%Msq=9@zeHaEb=+S<iJb#HR}rByv-
z{S6V|oG4Ihc;XEaX>2O&?rpfG8!}WI8*Jn-uu?Cw<zt~d#%iCkmHby&U8`ikgQIM?*7KS}%2sO@p3FQTce*cwh1Y(~>?l=pKO(2)w<!gCBpxq!r0Z`b)h
P$)BiZ+=)8JMLa=cV7wEL)Q_^j^_GkxSAeS@dXO#{klHBBLFH85f|RFF?Y;`wSO_8b5vs6?Tq%wK?dZai`5ir^$EMvQs+up9R2o#O(q!*mwLcc-
u$Y;bV<qoN<XOV3{2`UoM|>(y8<HohftCdF2|s9oD%c4Cn=<J9A_&j{vJ9(BBFNuK!y{G_JqW@B+$sYg7#0|Nrm4dqRi&y=2)z^UkL-
?d{ms9kCEVlg#?ofU4L|(yqUpe1NVh!k>Zn{F&G>AeQxr972GcPU$=}b`TeNM-V@&8i*8*L*Q>^{|`s2wqy
"""
STREAM = zlib.decompress(base64.b85decode("".join(PACKED.split())))
