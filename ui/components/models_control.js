// Metrics of the models side by side, the gate's decisions with their reasons, and the actions of an administrator.
// Emits act {what: "train" | "rollback" | "promote" | "list", version}.

export default {
  template: `
    <div class="ac-control" data-testid="models" :data-busy="!!busy">
      <p class="ac-control-line" data-testid="training"><b role="status">{{ training.words }}</b> <span>{{ training.progress }}</span></p>
      <progress v-if="training.running" aria-label="Training is running"></progress>
      <div v-if="columns.length" class="ac-feed" tabindex="0" role="region" aria-label="Models side by side">
        <table class="ac-small-table">
          <thead><tr><td></td><th v-for="c in columns" :key="c.version" scope="col" :data-model="c.version"><span :class="'role-' + c.role">{{ c.role }}</span><code>{{ c.version }}</code></th></tr></thead>
          <tbody>
            <tr v-for="(name, n) in metrics" :key="name"><th scope="row">{{ name }}</th>
              <td v-for="c in columns" :key="c.version" class="num" :class="{best: c.best.includes(name)}">{{ c.metrics[n] }}</td></tr>
            <tr><th scope="row">serve</th><td v-for="c in columns" :key="c.version">
              <button v-if="c.promotable" type="button" class="ac-button" :disabled="!!busy" :data-promote="c.version" @click="act('promote', c.version)">Promote</button>
              <span v-else>{{ c.status }}</span></td></tr>
          </tbody>
        </table>
      </div>
      <p v-else class="ac-empty">{{ listed ? "No model in the registry yet: train one." : "The registry has not been read yet." }}</p>
      <div class="ac-control-buttons">
        <button type="button" class="ac-button" data-testid="train" :disabled="training.running" @click="act('train')">Retrain now</button>
        <button type="button" class="ac-button" data-testid="rollback" :disabled="!!busy || !canRollBack" @click="act('rollback')">Roll back</button>
        <button type="button" class="ac-button" data-testid="list-models" :disabled="!!busy" @click="act('list')">{{ listed ? "Refresh" : "Read the registry" }}</button>
        <span v-if="busy" class="ac-control-busy">{{ busy }}…</span>
      </div>
      <p v-if="error" class="ac-control-error" role="alert">{{ error }}</p>
      <div v-if="decisions.length">
        <h3>The gate's decisions</h3>
        <ul class="ac-decisions" data-testid="decisions"><li v-for="d in decisions" :key="d.version" :class="{refused: !d.passed}">
          <b>{{ d.verdict }}</b> <code>{{ d.version }}</code> {{ d.reason }}</li></ul>
      </div>
    </div>`,
  props: { training: Object, columns: Array, metrics: Array, decisions: Array, busy: String, error: String, listed: Boolean, canRollBack: Boolean },
  methods: {
    act(what, version) {
      this.$emit("act", { what, version: version || "" });
    },
  },
};
