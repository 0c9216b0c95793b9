/* Grekko standing exits. One entry, one position of Q units, its exit used in slices, and one approved reduce of all of it that
   competes with them. Every do-option is one atomic step, so a crash can fall between any two. Risk may trip (a new epoch) and
   may die for good at any moment. Variants by -D, listed in ./run. */
#ifndef Q
#define Q 2            /* units that the entry buys */
#endif
#ifndef CLAIM
#define CLAIM 1        /* the number of a slice is taken in the ledger before its order is sent; 0: counted in memory */
#endif
#ifndef ADOPT
#define ADOPT 1        /* the exit is kept in the commit that claims the entry; 0: in memory, once its fill is heard of */
#endif
#ifndef BOUND
#define BOUND 0        /* 1: an exit is good only while risk is alive and its epoch is the newest */
#endif
#ifndef RECON
#define RECON 1        /* a slice counts as absent only when nothing of it is on its way; 0: not found means absent */
#endif
#ifndef COUNT
#define COUNT 1        /* a slice is bounded by the position less all that may be closing it; 0: by the position alone */
#endif
#ifndef ROOM
#define ROOM 1         /* so is a reduce: a stop in its way is withdrawn first; 0: risk's word, which does not count stops, is enough */
#endif
#ifndef EC
#define EC 1           /* crashes of execution */
#endif
#ifndef LOST
#define LOST 1         /* messages to the venue that are lost */
#endif
#ifndef PART
#define PART 1         /* orders that the venue ends before they are filled */
#endif
#define S 6            /* five slices, more than the faults can use up, and the reduce */
#define R 5            /* the reduce */
#define W 1            /* at the venue: working */
#define F 2            /* over */
#define INIT 1         /* in the ledger: written down, maybe sent */
#define OVER 4
#define UNKN 5

bool rup=true, trip=false, eup=true, hit=false, heard=false;
byte ec=EC, lost=LOST, part=PART, moves=1;
byte est=0;                        /* the entry: 0 approved, 1 claimed, 2 sent and bought */
bool kept=false, memx=false;       /* the exit: in execution's ledger; in its memory */
byte pos=0, lpos=0;                /* held at the venue; by execution's ledger */
byte nxt=0, cur=S, pc=0;           /* the next number in memory; the order under way */
bool fate[S]; byte os[S], q[S], lf[S]; byte infl[S], vst[S], vq[S], vf[S], vc[S];

#define HAS (kept || memx)
#define GOOD (!BOUND || (rup && !trip))
#define OUT(k) ((os[k]==INIT || os[k]==UNKN) -> q[k]-lf[k] : 0)
#define CLOSING (OUT(0)+OUT(1)+OUT(2)+OUT(3)+OUT(4)+OUT(5))
#define LEFT(counts) (counts -> (lpos>CLOSING -> lpos-CLOSING : 0) : lpos)
#define ALIVE(k) (pc>0 && cur==k)

proctype Risk() {
end: do
  :: atomic { rup && !trip -> trip=true }                                  /* every approval dies, no exit does */
  :: atomic { rup -> rup=false }                                           /* and never comes back */
  od }

proctype Market() {
end: atomic { heard -> hit=true } }                                        /* the stop's price is reached */

proctype Venue(byte k) {
end: do
  :: atomic { infl[k]>0 -> infl[k]--;
       if :: vc[k]>0 -> skip                                               /* the same client order id again */
          :: else -> vc[k]++; vst[k]=W; vq[k]=q[k];
             assert(vc[k]<=1) fi }                                         /* X1 at most one venue order per slice */
  :: atomic { infl[k]>0 && lost>0 -> lost--; infl[k]-- }
  :: atomic { vst[k]==W && vf[k]<vq[k] ->
       assert(pos>0);                                                      /* X2 nothing is sold that is not there */
       pos--; vf[k]++; if :: vf[k]==vq[k] -> vst[k]=F :: else fi }
  :: atomic { vst[k]==W && part>0 -> part--; vst[k]=F }
  od }

inline tell(k) {                   /* what the venue says of an order that it knows */
  lpos=lpos-(vf[k]-lf[k]); lf[k]=vf[k];
  if :: vst[k]==F -> os[k]=OVER :: else fi }

#define ASK(k) \
  :: atomic { eup && (os[k]==INIT || os[k]==UNKN) && !ALIVE(k) && vst[k]!=0 && (vst[k]==F || lf[k]!=vf[k]) -> tell(k) } \
  :: atomic { eup && (os[k]==INIT || os[k]==UNKN) && !ALIVE(k) && vst[k]==0 && (!RECON || infl[k]==0) -> os[k]=OVER }
#define SLICE(k, free) \
  :: atomic { eup && hit && HAS && GOOD && pc==0 && LEFT(COUNT)>0 && free -> \
       q[k]=LEFT(COUNT); fate[k]=true; os[k]=INIT; lf[k]=0; cur=k; nxt=k+1; pc=1 }
#if CLAIM
#define IS_NEXT(k, before) (!fate[k] && before)
#else
#define IS_NEXT(k, before) (nxt==k)
#endif
#define WITHDRAW(k) \
  :: atomic { eup && !fate[R] && vst[k]==W && moves>0 && !ALIVE(k) -> moves--; vst[k]=F }      /* room for the reduce */

proctype Execution() {
end: do
  :: atomic { eup && est==0 && rup && !trip -> est=1; if :: ADOPT -> kept=true :: else fi }    /* the entry's claim */
  :: atomic { eup && est==1 -> est=2; pos=Q }                              /* sent and bought; after a crash found by asking */
  :: atomic { eup && est==2 && !heard -> lpos=Q; heard=true; memx=true }   /* its fill is heard of */
  SLICE(0, IS_NEXT(0, true)) SLICE(1, IS_NEXT(1, fate[0])) SLICE(2, IS_NEXT(2, fate[1]))
  SLICE(3, IS_NEXT(3, fate[2])) SLICE(4, IS_NEXT(4, fate[3]))
  :: atomic { eup && heard && pc==0 && !fate[R] && LEFT(ROOM)>=Q -> q[R]=Q; fate[R]=true; os[R]=INIT; cur=R; pc=1 }
  WITHDRAW(0) WITHDRAW(1) WITHDRAW(2) WITHDRAW(3) WITHDRAW(4)
  :: atomic { eup && pc==1 -> infl[cur]++; pc=2 }
  :: atomic { eup && pc==2 && vst[cur]!=0 -> tell(cur); pc=0; cur=S }      /* answered */
  :: atomic { eup && pc==2 -> if :: os[cur]==INIT -> os[cur]=UNKN :: else fi; pc=0; cur=S }    /* no answer in time */
  :: atomic { eup && ec>0 -> ec--; eup=false; memx=false; nxt=0; pc=0; cur=S }
  :: atomic { !eup -> eup=true }
  ASK(0) ASK(1) ASK(2) ASK(3) ASK(4) ASK(5)
  od }

proctype Fin() { byte k=0;
  timeout -> atomic {
    assert(!(hit && pos>0));                                               /* X3 a stop that was hit has closed the position */
    assert(lpos==pos || !heard);                                           /* X4 ledger agrees with venue */
    do :: k<S -> assert(!(os[k]==INIT || os[k]==UNKN)); k++ :: else -> break od } }             /* X5 no unresolved order */

init { byte k=0; atomic {
  run Risk(); run Market(); run Execution(); do :: k<S -> run Venue(k); k++ :: else -> break od; run Fin() } }
