/* Grekko sign-off walk. One transition system; every do-option is one atomic step, so a crash can fall between any two.
   Variants by -D, listed in ./run.  Time: risk clock = now; execution clock = now+sk-SKM (skew in [-SKM, SKMAX-SKM]). */
#ifndef N
#define N 2
#endif
#ifndef NE
#define NE 1
#endif
#ifndef LIMIT
#define LIMIT 1
#endif
#ifndef TTL
#define TTL 1
#endif
#ifndef G
#define G 0            /* risk releases at now >= exp+G */
#endif
#ifndef ISSUEMAX
#define ISSUEMAX 1
#endif
#ifndef SKM
#define SKM 1
#endif
#ifndef MAXT
#define MAXT 5
#endif
#ifndef EXPIRY
#define EXPIRY 0       /* 0 clock+read claims; 1 shared fate row (risk inserts 'expired' in the claim table); 2 execution writes 'lapsed' */
#endif
#ifndef POSTCHECK
#define POSTCHECK 0    /* re-check clock after the claim commit, in the send step */
#endif
#ifndef ATOMSEND
#define ATOMSEND 1     /* epoch (and clock) re-check and write in one step without await */
#endif
#ifndef RECHECK
#define RECHECK 1
#endif
#ifndef RECON
#define RECON 2        /* 0 not-found=>ABSENT; 1 re-send; 2 ABSENT after exp and network drained; 3 ABSENT after exp, venue refuses after exp; 4 as 2 but only when the claimer is dead (lock) */
#endif
#ifndef VALID
#define VALID 0        /* venue drops requests after approval expiry */
#endif
#ifndef DEDUPE
#define DEDUPE 1       /* 0 none; 1 forever; 2 only while open */
#endif
#ifndef SIGEARLY
#define SIGEARLY 0
#endif
#ifndef TRIPORD
#define TRIPORD 1      /* 0 announce then commit; 1 commit then announce */
#endif
#ifndef GENBUMP
#define GENBUMP 1      /* risk restart: epoch+1 durable, state HALTED unless it was cleanly ACTIVE */
#endif
#ifndef LEARNP
#define LEARNP 1       /* execution restart: must hear a heartbeat first (knows >= last announced) */
#endif
#ifndef RC
#define RC 1
#endif
#ifndef EC
#define EC 1
#endif
#ifndef TRIPS
#define TRIPS 1
#endif
#define W 1
#define F 2
#define RJ 3
byte now; byte sk;
byte ap[N], apep[N], apx[N]; bit sig[N], mem[N]; byte rpc[N]; bit seen[N];
bool rup=true, halted=false, dhalt=false; byte rep=1, dep=1, ann=1; byte rc=RC, trips=TRIPS, resets=1; bit gtrip=0; byte tpc=0;
byte fate[N], ost[N]; byte own[N]; bit fset[N];
byte pc[NE], cur[NE], lrn[NE], gl[NE]; bool eup[NE]; byte ec=EC;
byte infl[N], vst[N], vc[N]; byte vlive;
#define CNT(x) (x[0]+x[1])
#if N>2
#undef CNT
#define CNT(x) (x[0]+x[1]+x[2])
#endif
#define TE (now+sk)            /* compare with apx+SKM */
#define HELD(i) (ap[i]==1)

inline recv(i) { /* venue takes one request */
  infl[i]--;
  if
  :: (VALID && now>apx[i]) -> skip
  :: else -> if
     :: (DEDUPE==1 && vc[i]>0) || (DEDUPE==2 && vst[i]==W) -> skip
     :: else -> if
        :: vst[i]=W; vc[i]++; vlive++; 
           assert(vc[i]<=1);                       /* P1 at most one venue order per approval */
#ifndef NOP3S
           assert(HELD(i));                        /* P3s every live order is still held by risk */
#endif
           assert(vlive<=LIMIT)                    /* P3 */
        :: vc[i]==0 -> vst[i]=RJ
        fi
     fi
  fi
}

proctype A(byte i) {          /* risk + venue, per approval */
end: do
  /* risk: decide in memory */
  :: atomic { rup && now<=ISSUEMAX && rpc[i]==0 && !halted && tpc==0 && ap[i]==0 && CNT(mem)<LIMIT -> assert(!gtrip); mem[i]=1; rpc[i]=1; apep[i]=rep; apx[i]=now+TTL; 
              if :: SIGEARLY -> sig[i]=1 :: else fi }
  :: atomic { rup && rpc[i]==1 -> ap[i]=1; rpc[i]=2 }                       /* durable */
  :: atomic { rup && rpc[i]==2 && !sig[i] -> sig[i]=1 }                      /* signature leaves risk */
  /* release by expiry */
#if EXPIRY==0
  :: atomic { rup && ap[i]==1 && rpc[i]==2 && now>=apx[i]+G && !seen[i] && fate[i]==0 -> seen[i]=1 }   /* read the claims */
  :: atomic { rup && seen[i] && ap[i]==1 -> ap[i]=2; mem[i]=0; seen[i]=0 }   /* commit the release */
#elif EXPIRY==1
  :: atomic { rup && ap[i]==1 && rpc[i]==2 && now>=apx[i] && fate[i]==0 -> fate[i]=2 }
  :: atomic { rup && ap[i]==1 && fate[i]==2 -> ap[i]=2; mem[i]=0 }
#else
  :: atomic { rup && ap[i]==1 && fate[i]==2 -> ap[i]=2; mem[i]=0 }
#endif
  /* release by terminal evidence */
  :: atomic { rup && ap[i]==1 && fate[i]==1 && ost[i]==4 -> ap[i]=2; mem[i]=0 }
  /* venue */
  :: atomic { infl[i]>0 -> recv(i) }
  :: atomic { infl[i]>0 -> infl[i]-- }                                       /* lost */
  :: atomic { vst[i]==W -> vst[i]=F }
  od }

proctype R() { byte k;        /* breaker, crash, clock */
end: do
  :: atomic { now<MAXT -> now++ }
  :: atomic { rup && trips>0 && tpc==0 -> trips--; rep++; halted=true; tpc=1 }
#if TRIPORD==0
  :: atomic { rup && tpc==1 -> ann=rep; gtrip=1; tpc=2 }
  :: atomic { rup && tpc==2 -> dep=rep; dhalt=true; tpc=0 }
#else
  :: atomic { rup && tpc==1 -> dep=rep; dhalt=true; tpc=2 }
  :: atomic { rup && tpc==2 -> ann=rep; gtrip=1; tpc=0 }
#endif
  :: atomic { rup && tpc==0 && halted && resets>0 -> resets--; halted=false; dhalt=false; gtrip=0 }   /* operator */
  :: atomic { rup && rc>0 -> rc--; rup=false; tpc=0; k=0;
       do :: k<N -> mem[k]=0; seen[k]=0; if :: rpc[k]==1 -> rpc[k]=0; apep[k]=apep[k] :: else fi; k++ :: else -> break od }
  :: atomic { !rup -> rup=true; rep=dep; halted=dhalt;
       if :: GENBUMP -> rep=rep+1; if :: ann>=rep -> rep=ann+1 :: else fi; dep=rep; halted=true; dhalt=true; ann=rep; resets=(resets==0->1:resets) :: else fi;
       k=0; do :: k<N -> mem[k]=(ap[k]==1); if :: rpc[k]==0 && ap[k]==0 && sig[k] -> rpc[k]=0 :: else fi; k++ :: else -> break od; k=0 }
  od }

#define PICK(i) :: atomic { eup[e] && pc[e]==0 && sig[i] && fate[i]==0 && TE<apx[i]+SKM && lrn[e]==apep[i] -> cur[e]=i; pc[e]=1 }
#define REC(i)  :: atomic { eup[e] && fate[i]==1 && (ost[i]==1||ost[i]==5) && !(pc[e]>1 && cur[e]==i) && vst[i]!=0 -> ost[i]=(vst[i]==RJ->4:vst[i]+1) } \
  :: atomic { eup[e] && fate[i]==1 && (ost[i]==1||ost[i]==5) && !(pc[e]>1 && cur[e]==i) && vst[i]==0 && \
     (RECON==0 || (RECON==2 && now>apx[i]+1 && infl[i]==0) || (RECON==3 && now>apx[i]) || (RECON==4 && now>apx[i] && infl[i]==0 && !ALIVE(i))) -> ost[i]=4 } \
  :: atomic { RECON==1 && eup[e] && fate[i]==1 && ost[i]==1 && !(pc[e]>1 && cur[e]==i) -> infl[i]++; ost[i]=5 } \
  :: atomic { RECON==1 && eup[e] && fate[i]==1 && ost[i]==5 && infl[i]==0 && vst[i]==0 -> ost[i]=4 } \
  :: atomic { EXPIRY==2 && eup[e] && ap[i]==1 && fate[i]==0 && TE>=apx[i]+SKM -> fate[i]=2 }
#if NE==1
#define ALIVE(i) (pc[0]>1 && cur[0]==i)
#else
#define ALIVE(i) ((pc[0]>1 && cur[0]==i)||(pc[1]>1 && cur[1]==i))
#endif
#define c cur[e]
#define LATE (POSTCHECK && TE>=apx[c]+SKM)
proctype E(byte e) {
end: do
  PICK(0) PICK(1)
#if N>2
  PICK(2)
#endif
  :: atomic { eup[e] && pc[e]==1 -> if :: fate[c]==0 -> fate[c]=1; ost[c]=1; own[c]=e; pc[e]=2 :: else -> pc[e]=0; c=0 fi }  /* UNIQUE claim commit */
#if ATOMSEND
  :: atomic { eup[e] && pc[e]==2 -> 
      if :: (RECHECK && lrn[e]!=apep[c]) || LATE -> ost[c]=4; pc[e]=0; c=0                /* NOT_SENT, journalled */
         :: else -> assert(apep[c]>=gl[e]); infl[c]++; pc[e]=5 fi }
#else
  :: atomic { eup[e] && pc[e]==2 -> if :: (RECHECK && lrn[e]!=apep[c]) || LATE -> ost[c]=4; pc[e]=0; c=0 :: else -> pc[e]=3 fi }
  :: atomic { eup[e] && pc[e]==3 -> assert(apep[c]>=gl[e]); infl[c]++; pc[e]=5 }           /* P2 no send begins after execution learned */
#endif
  :: atomic { eup[e] && pc[e]==5 && vst[c]!=0 -> ost[c]=(vst[c]==RJ->4:vst[c]+1); pc[e]=0; c=0 }   /* ack */
  :: atomic { eup[e] && pc[e]==5 -> ost[c]=(ost[c]==1->5:ost[c]); pc[e]=0; c=0 }                    /* timeout: UNKNOWN */
  :: atomic { eup[e] && lrn[e]!=ann && (LEARNP==0 || ann>lrn[e]) -> lrn[e]=ann; if :: ann>gl[e] -> gl[e]=ann :: else fi }
  :: atomic { eup[e] && ec>0 -> ec--; eup[e]=false; pc[e]=0; c=0 }
  :: atomic { !eup[e] -> eup[e]=true; lrn[e]=(LEARNP->ann:1); if :: LEARNP && ann>gl[e] -> gl[e]=ann :: else fi }
  REC(0) REC(1)
#if N>2
  REC(2)
#endif
  od }

proctype Fin() { byte k=0;
  timeout -> atomic { do :: k<N -> 
       assert(!(ap[k]==1 && vst[k]!=W && vst[k]!=F));          /* P4 no leaked reservation at quiescence */
       assert(!(fate[k]==1 && (ost[k]==1||ost[k]==5)));         /* P5 no unresolved order */
       assert(!((vst[k]==W||vst[k]==F) && ost[k]==4));          /* P6 ledger agrees with venue */
       k++ :: else -> break od } }
init { byte k=0; atomic {
  if :: sk=0 :: sk=1 :: sk=2 fi;
#ifdef FIXSK
  sk=FIXSK;
#endif
  do :: k<NE -> eup[k]=true; lrn[k]=1; gl[k]=1; k++ :: else -> break od; k=0;
  do :: k<N -> run A(k); k++ :: else -> break od; k=0;
  run R(); do :: k<NE -> run E(k); k++ :: else -> break od; run Fin(); k=0 } }
