// Fault injection, and the recount that verifies the state. Emits fault {fault} and reconcile.

const FAULTS = [
  { fault: "stream", name: "Kill the stream job", what: "with SIGKILL; the supervisor restarts it" },
  { fault: "redis", name: "Pause Redis", what: "for 3 seconds; lists are still served" },
  { fault: "duplicates", name: "Resend events", what: "the 50 newest, byte for byte; none is counted again" },
];

export default {
  template: `
    <div class="ac-control" data-testid="fault-injection">
      <ul v-if="allowed" class="ac-faults"><li v-for="f in faults" :key="f.fault">
        <button type="button" class="ac-button ac-danger" :data-fault="f.fault" @click="$emit('fault', { fault: f.fault })">{{ f.name }}</button> <small>{{ f.what }}</small></li></ul>
      <p v-else class="ac-empty">Fault injection is disabled: <code>AFTERCLICK_CONSOLE__FAULT_INJECTION=true</code> enables it.</p>
      <p v-if="parts.length" class="ac-control-line" data-testid="parts"><span v-for="p in parts" :key="p.name" :class="'part-is-' + p.state">{{ p.name }}: {{ p.state }}<template v-if="p.restarts"> ({{ p.restarts }} {{ p.restarts > 1 ? 'restarts' : 'restart' }})</template></span></p>
      <ol v-if="done.length" class="ac-done" data-testid="faults"><li v-for="d in done" :key="d.time + d.done"><time>{{ clock(d.time) }}</time> {{ d.done }}</li></ol>
      <div class="ac-control-buttons">
        <button type="button" class="ac-button" data-testid="reconcile" :disabled="proof.state === 'running'" @click="$emit('reconcile', {})">Recount the log and compare</button>
      </div>
      <p v-if="proof.state" class="ac-proof" :class="proof.state" data-testid="proof"><b role="status">{{ proof.words }}</b> <span>{{ proof.more }}</span></p>
    </div>`,
  props: { allowed: Boolean, parts: Array, done: Array, proof: Object },
  data() {
    return { faults: FAULTS };
  },
  methods: {
    clock(time) {
      return new Date(time * 1000).toTimeString().slice(0, 8);
    },
  },
};
