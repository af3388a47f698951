// The replay: its event time and progress, and its controls. Emits change {state} or {speed} or {rate}.

const PACES = [
  { name: "5 events/s", rate: 5 },
  { name: "20 events/s", rate: 20 },
  { name: "200 events/s", rate: 200 },
  { name: "1 hour per second", speed: "1h/s" },
  { name: "1 day per second", speed: "1d/s" },
  { name: "1 month per second", speed: "30d/s" },
  { name: "as fast as possible", speed: "max" },
];

export default {
  template: `
    <div class="ac-control" data-testid="replay" :data-state="state">
      <p v-if="!replay" class="ac-empty">No replay has run from the console's home folder. <code>afterclick ingest replay</code> starts one.</p>
      <template v-else>
        <p class="ac-control-line"><b>{{ words }}</b> <span>{{ replay.dataset }}, {{ replay.pace || "default pace" }}</span></p>
        <p class="ac-when"><time :datetime="when">{{ when.slice(0, 10) }}</time> <small>{{ when.slice(11, 16) }} event time</small></p>
        <progress :value="replay.delivered" :max="replay.total || 1" aria-label="Events delivered"></progress>
        <p class="ac-control-line"><span>{{ replay.delivered.toLocaleString("en") }} of {{ replay.total.toLocaleString("en") }} events</span>
          <span>{{ Math.round(replay.rate).toLocaleString("en") }}/s{{ left }}</span></p>
        <div class="ac-control-buttons">
          <button type="button" class="ac-button" data-testid="replay-toggle" :disabled="!replay.active" @click="toggle">{{ paused ? "Resume" : "Pause the replay" }}</button>
          <label>Pace <select data-testid="replay-pace" :disabled="!replay.active" @change="pace($event)">
            <option value="">{{ replay.pace || "default" }}</option>
            <option v-for="(p, n) in paces" :key="p.name" :value="n">{{ p.name }}</option></select></label>
        </div>
      </template>
    </div>`,
  props: { replay: Object },
  data() {
    return { paces: PACES };
  },
  computed: {
    state() {
      return !this.replay ? "none" : this.replay.active ? this.replay.state : "ended";
    },
    paused() {
      return this.state === "paused";
    },
    words() {
      return { running: "Running", paused: "Paused", ended: "Not running" }[this.state];
    },
    when() {
      return new Date(this.replay.event_time_ms).toISOString();
    },
    left() {
      const s = this.replay.eta_s;
      if (!this.replay.active || s === null || s === undefined) return "";
      return s > 5400 ? `, ${(s / 3600).toFixed(1)} h left` : s > 90 ? `, ${Math.round(s / 60)} min left` : `, ${Math.round(s)} s left`;
    },
  },
  methods: {
    toggle() {
      this.$emit("change", { state: this.paused ? "running" : "paused" });
    },
    pace(event) {
      const chosen = PACES[event.target.value];
      event.target.value = "";
      if (chosen) this.$emit("change", chosen.speed ? { speed: chosen.speed } : { rate: chosen.rate });
    },
  },
};
